//! Chat templates, tokenizers, incremental detokenizing, stop conditions.
