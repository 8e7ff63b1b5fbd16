"""What is measured, beside its peers and DESIGN's targets: `make bench`, docs/performance.md."""
