"""Whether a net is right: its accuracy, the published figures, and their reproduction."""
