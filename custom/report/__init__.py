"""Tables, plots and pictures that a person reads."""
