"""Exchange with Hugging Face: conversion of weights, tokenizer files, model cards."""
