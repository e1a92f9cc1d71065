"""The export as one GGUF file for llama.cpp and Ollama: weights, vocabulary, and the Modelfile beside it."""
