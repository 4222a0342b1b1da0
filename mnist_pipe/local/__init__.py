"""What runs on one machine: the services of `mnist-pipe up`, the dashboards, the doctor and a stage's supervisor."""
