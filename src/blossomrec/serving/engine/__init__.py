"""The thread of the model: histories encoded, catalogue ranked, without HTTP."""
