"""Speed on one accelerator: decoding against the memory's bandwidth, updates against the peak of products."""
