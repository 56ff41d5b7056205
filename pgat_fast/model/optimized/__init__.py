"""The model with exact rewrites and bounded memory, one file a part that is rewritten; the rest is the reference's."""
