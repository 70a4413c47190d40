"""Tables: trace rows and edit rows joined, summed up, and laid out as the paper's tables."""
