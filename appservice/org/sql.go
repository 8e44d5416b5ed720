package org

import (
	"encoding/json"
	"fmt"

	"github.com/carillon-chat/carillon/homeserver/sqldb"
)

const (
	qVersion      = `SELECT epoch, version FROM as_org_version`
	qSetVersion   = `UPDATE as_org_version SET epoch = $1, version = $2, changed_at = $3 WHERE epoch = $4 AND version = $5`
	qNameSites    = `UPDATE as_people SET site = $1, changed_at = $2 WHERE site = ''`
	qRaiseVersion = `UPDATE as_org_version SET version = $1, changed_at = $2 WHERE version = $3`

	qUnits = `SELECT id, parent_id, name, code, position, site, own_site, managers, no_room, contain_sub, removed_at
		FROM as_units`
	qPutUnit = `INSERT INTO as_units
		(id, parent_id, name, code, position, site, own_site, managers, no_room, contain_sub, created_at, removed_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 0)
		ON CONFLICT (id) DO UPDATE SET parent_id = excluded.parent_id, name = excluded.name, code = excluded.code,
		position = excluded.position, site = excluded.site, own_site = excluded.own_site, managers = excluded.managers,
		no_room = excluded.no_room, contain_sub = excluded.contain_sub, removed_at = 0`
	qRemoveUnit = `UPDATE as_units SET removed_at = $2 WHERE id = $1`

	qPeople    = `SELECT id, localpart, name, mobile, email, manager, hired, left_on, status, admin, site FROM as_people`
	qPutPerson = `INSERT INTO as_people
		(id, localpart, name, mobile, email, manager, hired, left_on, status, admin, created_at, changed_at, site)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11, $12)
		ON CONFLICT (id) DO UPDATE SET localpart = excluded.localpart, name = excluded.name, mobile = excluded.mobile, email = excluded.email,
		manager = excluded.manager, hired = excluded.hired, left_on = excluded.left_on, status = excluded.status,
		admin = excluded.admin, changed_at = excluded.changed_at, site = excluded.site`

	qPosts       = `SELECT person_id, unit_id, title, main, leader, position FROM as_posts ORDER BY person_id, place`
	qDeletePosts = `DELETE FROM as_posts WHERE person_id = $1`
	qInsertPost  = `INSERT INTO as_posts (person_id, place, unit_id, title, main, leader, position)
		VALUES ($1, $2, $3, $4, $5, $6, $7)`

	qInsertJournal = `INSERT INTO as_org_journal (version, at, actor, kind, object_id, old_value, new_value)
		VALUES ($1, $2, $3, $4, $5, $6, $7)`
	qJournal = `SELECT seq, version, at, actor, kind, object_id, old_value, new_value FROM as_org_journal
		WHERE seq < $1 ORDER BY seq DESC LIMIT $2`
	qChangedSince = `SELECT MIN(kind), object_id FROM as_org_journal WHERE version > $1 GROUP BY SUBSTR(kind, 1, 4), object_id
		ORDER BY MIN(seq)`
)

func putUnit(tx *sqldb.Tx, u *Unit, now int64) error {
	managers, err := json.Marshal(u.Managers)
	if err != nil {
		return err
	}
	_, err = tx.Exec(qPutUnit, u.ID, u.ParentID, u.Name, u.Code, u.Order, u.Site, u.OwnSite, string(managers),
		u.NoRoom, u.ContainSub, now)
	return err
}

func putPerson(tx *sqldb.Tx, p *Person, fresh bool, now int64) error {
	_, err := tx.Exec(qPutPerson, p.ID, p.Localpart, p.Name, p.Mobile, p.Email, p.Manager, p.Hired, p.Left,
		string(p.Status), p.Admin, now, p.Site)
	if err != nil {
		return err
	}
	if !fresh {
		if _, err := tx.Exec(qDeletePosts, p.ID); err != nil {
			return err
		}
	}
	for i, post := range p.Posts {
		if _, err := tx.Exec(qInsertPost, p.ID, i, post.Unit, post.Title, post.Main, string(post.Leader), post.Order); err != nil {
			return err
		}
	}
	return nil
}

type unitRow struct {
	Unit
	removed bool
}

func scanUnit(rows *sqldb.Rows) (*unitRow, error) {
	var u unitRow
	var managers string
	var removedAt int64
	err := rows.Scan(&u.ID, &u.ParentID, &u.Name, &u.Code, &u.Order, &u.Site, &u.OwnSite, &managers,
		&u.NoRoom, &u.ContainSub, &removedAt)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal([]byte(managers), &u.Managers); err != nil {
		return nil, fmt.Errorf("managers of unit %s: %w", u.ID, err)
	}
	u.removed = removedAt != 0
	return &u, nil
}

func scanPerson(rows *sqldb.Rows) (*Person, error) {
	var p Person
	err := rows.Scan(&p.ID, &p.Localpart, &p.Name, &p.Mobile, &p.Email, &p.Manager, &p.Hired, &p.Left, &p.Status, &p.Admin, &p.Site)
	return &p, err
}

type postRow struct {
	person string
	post   Post
}

func scanPost(rows *sqldb.Rows) (postRow, error) {
	var r postRow
	err := rows.Scan(&r.person, &r.post.Unit, &r.post.Title, &r.post.Main, &r.post.Leader, &r.post.Order)
	return r, err
}

func scanEntry(rows *sqldb.Rows) (Entry, error) {
	var e Entry
	var old, next string
	err := rows.Scan(&e.Seq, &e.Version, &e.At, &e.Actor, &e.Kind, &e.ObjectID, &old, &next)
	if old != "" {
		e.Old = json.RawMessage(old)
	}
	if next != "" {
		e.New = json.RawMessage(next)
	}
	return e, err
}

// loadTree reads the whole organisation.
func loadTree(tx *sqldb.Tx) (*Tree, error) {
	var epoch, version int64
	if err := tx.QueryRow(qVersion).Scan(&epoch, &version); err != nil {
		return nil, err
	}
	units, err := sqldb.Select(tx, scanUnit, qUnits)
	if err != nil {
		return nil, err
	}
	people, err := sqldb.Select(tx, scanPerson, qPeople)
	if err != nil {
		return nil, err
	}
	posts, err := sqldb.Select(tx, scanPost, qPosts)
	if err != nil {
		return nil, err
	}
	byID := make(map[string]*Person, len(people))
	for _, p := range people {
		byID[p.ID] = p
	}
	for _, r := range posts {
		if p := byID[r.person]; p != nil {
			p.Posts = append(p.Posts, r.post)
		}
	}
	var current []*Unit
	removed := map[string]*Unit{}
	for _, u := range units {
		if u.removed {
			removed[u.ID] = &u.Unit
		} else {
			current = append(current, &u.Unit)
		}
	}
	tree := newTree(version, current, people, removed)
	tree.Epoch = epoch
	return tree, nil
}
