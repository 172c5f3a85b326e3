"""Many evaluations of many models: what is asked, what is done already, and the table."""
