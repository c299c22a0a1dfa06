"""report.html: one page that opens from disk, with the network off."""
