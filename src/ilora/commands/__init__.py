"""What each command of `ilora` does and prints."""
