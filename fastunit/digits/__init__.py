"""The paper's domain adaptation between digit sets."""
