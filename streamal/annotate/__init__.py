"""Who answers? People through the `answers` topic, and a simulated annotator for tests, demo and evaluation."""
