"""Is it right? Accuracy, the registry of published figures, and their reproduction."""
