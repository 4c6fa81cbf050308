"""Tables, plots and HTML pages about evaluations, runs and what their selectors select."""
