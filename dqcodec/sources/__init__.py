"""Where samples come from: a source lists files and labels (`folder`); `images` turns a file into pixels."""
