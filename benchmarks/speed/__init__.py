"""Speed and memory over the length of histories, beside peers measured in the same run."""
