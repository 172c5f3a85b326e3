"""Questions about images: files, answers, batches."""
