"""Output of a run: console, log, plots, the HTML report."""
