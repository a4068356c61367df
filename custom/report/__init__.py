"""Tables, plots, pictures and pages that a person reads."""
