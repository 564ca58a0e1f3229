"""What the answers are worth: one module a metric, each the published rule or better, named."""
