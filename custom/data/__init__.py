"""From CTs to a cohort: scanning, preparing, splitting, simulating, augmenting, and phantoms where there are no CTs."""
