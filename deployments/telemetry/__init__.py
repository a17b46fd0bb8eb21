"""What is told of requests and replicas to those who watch: metrics, log lines, traces. Pure parts are
apart from those that write; only `ray_recorder` imports ray."""
