package media

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// Bucket is an object store that speaks S3.
type Bucket struct {
	Endpoint  string // such as https://s3.example.org:9000
	Region    string // us-east-1 when empty
	Name      string // of the bucket, which must be there
	Prefix    string // before the names of objects
	AccessKey string
	SecretKey string
	// PathStyle writes the bucket into the path and not before the host's name.
	PathStyle bool
	// PublicEndpoint is where clients reach the store, if not at Endpoint.
	PublicEndpoint string
	LinkFor        time.Duration // how long an address given to a client is good; 0 is 5 minutes
	ExtraCAs       []byte        // PEM certificates trusted besides the system's
}

const (
	// partSize is one piece of a large upload. Pieces are read from the disk as they are sent.
	partSize = 16 << 20
	// firstRead is how much is asked for at once; whoever goes on reading gets more at a time.
	firstRead, maxRead = 1 << 20, 64 << 20
	// readTries is how often a broken transfer is taken up again without having brought anything.
	readTries = 3
	// storeTries is how often the store is asked before it counts as down.
	storeTries = 5
	// leftover is the age after which an upload in pieces is not going on any more.
	leftover = 24 * time.Hour
)

// bucket keeps content in a Bucket.
type bucket struct {
	opts  Bucket
	store *minio.Core
	links *minio.Core // the same, as clients see it
}

func newBucket(ctx context.Context, opts Bucket) (*bucket, error) {
	if opts.Region == "" {
		opts.Region = "us-east-1" // given, lest the library ask for it
	}
	if opts.LinkFor <= 0 {
		opts.LinkFor = 5 * time.Minute
	}
	b := &bucket{opts: opts}
	var err error
	if b.store, err = b.client(opts.Endpoint); err != nil {
		return nil, err
	}
	if b.links = b.store; opts.PublicEndpoint != "" {
		if b.links, err = b.client(opts.PublicEndpoint); err != nil {
			return nil, err
		}
	}
	ok, err := b.store.BucketExists(ctx, opts.Name)
	if err != nil {
		return nil, fmt.Errorf("asking the object store for its bucket: %w", err)
	}
	if !ok {
		return nil, fmt.Errorf("the object store has no bucket %s", opts.Name)
	}
	return b, nil
}

func (b *bucket) client(endpoint string) (*minio.Core, error) {
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" {
		return nil, errors.New("the address of the object store must be http:// or https:// and a host")
	}
	way, err := b.transport(u.Scheme == "https")
	if err != nil {
		return nil, err
	}
	o := &minio.Options{
		Creds: credentials.NewStaticV4(b.opts.AccessKey, b.opts.SecretKey, ""), Secure: u.Scheme == "https",
		Region: b.opts.Region, Transport: way, MaxRetries: storeTries,
	}
	if b.opts.PathStyle {
		o.BucketLookup = minio.BucketLookupPath
	}
	c, err := minio.NewCore(u.Host, o)
	if err != nil {
		return nil, fmt.Errorf("setting up the object store: %w", err)
	}
	return c, nil
}

// transport is the way to the store.
func (b *bucket) transport(secure bool) (*http.Transport, error) {
	t, err := minio.DefaultTransport(secure)
	if err != nil || len(b.opts.ExtraCAs) == 0 || !secure {
		return t, err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(b.opts.ExtraCAs) {
		return nil, errors.New("no certificate found in the extra certificate authorities of the object store")
	}
	t.TLSClientConfig.RootCAs = pool
	return t, nil
}

// key is the name of content. The two digits spread what is walked.
func (b *bucket) key(hash string) string { return b.opts.Prefix + hash[:2] + "/" + hash }

func (b *bucket) put(ctx context.Context, hash string, f *os.File, size int64) error {
	info, err := b.store.StatObject(ctx, b.opts.Name, b.key(hash), minio.StatObjectOptions{})
	if err == nil && info.Size == size {
		return nil
	}
	if err != nil && !errors.Is(storeError(err), fs.ErrNotExist) {
		return err
	}
	// A section of a file can be read again when a piece has to be sent again.
	_, err = b.store.Client.PutObject(ctx, b.opts.Name, b.key(hash), io.NewSectionReader(f, 0, size), size, minio.PutObjectOptions{
		ContentType: octets, PartSize: partSize, NumThreads: 2,
	})
	return err
}

func (b *bucket) open(ctx context.Context, hash string, size int64) (io.ReadSeekCloser, error) {
	return &object{ctx: ctx, b: b, key: b.key(hash), size: size, window: firstRead}, nil
}

func (b *bucket) remove(ctx context.Context, hash string) error {
	err := storeError(b.store.RemoveObject(ctx, b.opts.Name, b.key(hash), minio.RemoveObjectOptions{}))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (b *bucket) walk(ctx context.Context, two string, fn func(string, int64, time.Time) error) error {
	for o := range b.store.ListObjectsIter(ctx, b.opts.Name, minio.ListObjectsOptions{Prefix: b.opts.Prefix + two + "/", Recursive: true}) {
		if o.Err != nil {
			return o.Err
		}
		hash := strings.TrimPrefix(o.Key, b.opts.Prefix+two+"/")
		if !validHash(hash) {
			continue
		}
		if err := fn(hash, o.Size, o.LastModified); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (b *bucket) link(ctx context.Context, hash string, headers url.Values) (string, error) {
	u, err := b.links.PresignedGetObject(ctx, b.opts.Name, b.key(hash), b.opts.LinkFor, headers)
	if err != nil {
		return "", fmt.Errorf("making a link: %w", err)
	}
	return u.String(), nil
}

// tidy removes pieces of uploads that a crash has ended.
func (b *bucket) tidy(ctx context.Context, now time.Time) error {
	for u := range b.store.ListIncompleteUploads(ctx, b.opts.Name, b.opts.Prefix, true) {
		if u.Err != nil {
			return u.Err
		}
		if now.Sub(u.Initiated) < leftover {
			continue
		}
		if err := b.store.AbortMultipartUpload(ctx, b.opts.Name, u.Key, u.UploadID); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// storeError makes fs.ErrNotExist of what the store says when there is no such object.
func storeError(err error) error {
	var e minio.ErrorResponse
	if errors.As(err, &e) && (e.Code == minio.NoSuchKey || e.StatusCode == http.StatusNotFound && e.Code != minio.NoSuchBucket) {
		return fs.ErrNotExist
	}
	return err
}

// object reads content of a bucket, in pieces, so that a seek throws little away. Nothing is asked for before the
// first read.
type object struct {
	ctx    context.Context //nolint:containedctx // of the request that reads
	b      *bucket
	key    string
	size   int64
	pos    int64
	window int64
	body   io.ReadCloser
	at     int64 // where body stands
	left   int64 // of body
}

// start asks for the first piece, so that what is not there is known before an answer has begun.
func (o *object) start() error {
	if o.size == 0 || o.body != nil {
		return nil
	}
	return o.ask()
}

func (o *object) ask() error {
	n := min(o.window, o.size-o.pos)
	var get minio.GetObjectOptions
	if err := get.SetRange(o.pos, o.pos+n-1); err != nil {
		return err
	}
	body, _, _, err := o.b.store.GetObject(o.ctx, o.b.opts.Name, o.key, get)
	if err != nil {
		return fmt.Errorf("reading the object store: %w", storeError(err))
	}
	o.body, o.at, o.left = body, o.pos, n
	o.window = min(o.window*4, maxRead)
	return nil
}

// Read is io.Reader. A transfer that breaks is taken up where it was.
func (o *object) Read(p []byte) (int, error) {
	var last error
	for range readTries {
		if o.pos >= o.size {
			return 0, io.EOF
		}
		if o.body != nil && o.at != o.pos {
			o.drop()
		}
		if o.body == nil {
			if err := o.ask(); err != nil {
				return 0, err
			}
		}
		n, err := o.body.Read(p[:min(int64(len(p)), o.left)])
		o.pos += int64(n)
		o.at = o.pos
		o.left -= int64(n)
		if err != nil || o.left == 0 {
			o.drop()
		}
		if n > 0 || len(p) == 0 {
			return n, nil
		}
		last = err
		if o.ctx.Err() != nil {
			return 0, o.ctx.Err()
		}
	}
	if last == nil || errors.Is(last, io.EOF) {
		last = io.ErrUnexpectedEOF
	}
	return 0, fmt.Errorf("reading the object store: %w", last)
}

// Seek is io.Seeker.
func (o *object) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += o.pos
	case io.SeekEnd:
		offset += o.size
	}
	if offset < 0 {
		return 0, fs.ErrInvalid
	}
	o.pos = offset // a transfer that stands elsewhere goes when it is read
	return offset, nil
}

// Close is io.Closer.
func (o *object) Close() error {
	o.drop()
	return nil
}

func (o *object) drop() {
	if o.body != nil {
		o.body.Close()
		o.body, o.left = nil, 0
	}
}
