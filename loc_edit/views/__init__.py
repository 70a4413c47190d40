"""Views: plain arrays and strings as a heatmap, colored tokens or a table, without torch."""
