"""What is in a data set: every sample looked at, counted, compared, and some of them shown."""
