"""The score, explained: a page of one detector's results, or of two against each other."""
