"""Readers of models: ONNX files, torch modules, exported programs."""
