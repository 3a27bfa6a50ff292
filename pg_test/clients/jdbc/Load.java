import java.io.FileInputStream;
import java.io.InputStream;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import org.postgresql.PGConnection;

/** Loads a file of planes in one transaction, and records it: Load URL LOADER_ID FILE */
class Load {
    static final String COPY = "COPY planes FROM STDIN (FORMAT csv, HEADER, NULL 'NA')";

    static void load(String url, long loaderId, String path) throws Exception {
        try (Connection db = DriverManager.getConnection(url)) {
            db.setAutoCommit(false);
            Long run = null;
            try {
                run = start(db, loaderId);
                long records;
                try (InputStream file = new FileInputStream(path)) {
                    records = db.unwrap(PGConnection.class).getCopyAPI().copyIn(COPY, file);
                }
                end(db, run, "SUCCESS", records, null);
                db.commit();
            } catch (Exception error) {
                db.rollback();
                if (run != null) {
                    end(db, run, "FAILED", null, error.toString());
                    db.commit();
                }
                throw error;
            }
        }
    }

    static long start(Connection db, long loaderId) throws SQLException {
        try (PreparedStatement call = db.prepareStatement("SELECT loader.record_execution_start(?)")) {
            call.setLong(1, loaderId);
            try (ResultSet result = call.executeQuery()) {
                result.next();
                return result.getLong(1);
            }
        }
    }

    static void end(Connection db, long run, String status, Long records, String error) throws SQLException {
        try (PreparedStatement call = db.prepareStatement("SELECT loader.record_execution_end(?, ?, ?, ?)")) {
            call.setLong(1, run);
            call.setString(2, status);
            call.setObject(3, records);
            call.setString(4, error);
            call.execute();
        }
    }

    public static void main(String[] arguments) throws Exception {
        load(arguments[0], Long.parseLong(arguments[1]), arguments[2]);
    }
}
