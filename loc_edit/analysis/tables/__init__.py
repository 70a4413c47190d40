"""Tables: trace rows and edit rows joined, summarized, and laid out as the paper's tables."""
