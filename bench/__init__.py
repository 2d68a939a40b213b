"""health and metrics measured beside their peers; `./run bench --help` tells how, docs/benchmarks.md what came out."""
