"""`ilora data check`."""
