"""Data: reading it, cutting it, and looking at it as of a moment. No model and no text for a model lives here."""
