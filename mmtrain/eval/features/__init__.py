"""Features of whole sets, gathered or kept in files."""
