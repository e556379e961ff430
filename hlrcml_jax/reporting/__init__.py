"""What a run shows and writes down: console, log, plots, the HTML page."""
