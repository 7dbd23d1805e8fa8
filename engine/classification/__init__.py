"""Classification as a job of the engine: one label for a whole image."""
