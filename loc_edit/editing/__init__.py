"""The editing methods: rome, memit, finetune; each returns an `Edit`."""
