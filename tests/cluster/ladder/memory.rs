//! A compiler that has too little memory.
