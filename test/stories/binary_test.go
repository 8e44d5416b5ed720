package stories_test

// binary is the program, built once for the stories that kill it.
var binary struct{ dir string }
