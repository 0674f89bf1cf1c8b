"""GGUF files, the format of llama.cpp, as a source of models: config, tokenizer and weights from one file."""
