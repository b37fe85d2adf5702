"""Options of the credit methods and the range checks of all settings; no torch."""
