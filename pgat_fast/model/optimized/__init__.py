"""Fast model with exact rewrites and bounded memory: one file for each rewritten part, the rest from the reference."""
