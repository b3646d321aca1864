"""Handing a finished adapter over: a PEFT folder, a merged model or a GGUF file, each with a model card."""
