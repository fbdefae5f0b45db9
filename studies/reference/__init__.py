"""Published numbers, with their sources: facts to draw beside ours and to test fits against."""
