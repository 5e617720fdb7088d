"""The bytes of a .dqz file: names and limits (`spec`), writing (`writer`), reading (`reader`)."""
