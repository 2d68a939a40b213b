%:
	@./run $@

.DEFAULT_GOAL := help
.PHONY: help
help:
	@./run
