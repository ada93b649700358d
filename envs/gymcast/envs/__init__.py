"""Games as compiled batches and Gymnasium environments."""
