"""What `mm eval` and the stage `eval` share: measuring a model, and the report of it. No part of its own."""
