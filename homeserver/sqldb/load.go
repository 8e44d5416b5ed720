package sqldb

// Load is how busy a database is just now.
type Load struct {
	Open, InUse, Max int // connections
	Waiting          int // writes that wait for the next commit; 0 on PostgreSQL, where they wait for a connection
}

// Load tells how busy the database is; it costs no statement.
func (db *DB) Load() Load {
	l := Load{Max: cap(db.readers), Waiting: len(db.writes)}
	l.Open = l.Max - len(db.more)
	l.InUse = l.Open - len(db.readers)
	if db.writer != nil { // the one that writes is always there
		l.Open, l.Max = l.Open+1, l.Max+1
		if l.Waiting > 0 {
			l.InUse++
		}
	}
	return l
}
