"""One machine: the services of `mnist-pipe up`, the dashboards, and the supervisor of a stage."""
